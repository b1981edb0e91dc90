//! Uses the client that openapi-generator makes for Rust: every value that the service answers is checked.

use std::{env, fmt::Debug, fs, time::Duration};

use lvp::apis::{cache_api, configuration::ApiKey, configuration::Configuration, host_api, jobs_api, volumes_api, Error};
use lvp::models::{principal::Role, ErrorResponse, Job, JobRequest, JobStatus, ProvisionedBy};
use reqwest::{Certificate, Client, Identity};
use uuid::Uuid;

const SIZE_GB: i64 = 3;
const SIZE: i64 = SIZE_GB << 30;
const ENDED: [JobStatus; 3] = [JobStatus::Completed, JobStatus::Failed, JobStatus::Cancelled];

fn setting(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Make a client with a token, or else with a certificate.
fn connect() -> Configuration {
    let ca = Certificate::from_pem(&fs::read(setting("LVP_CA")).unwrap()).unwrap();
    let mut builder = Client::builder().no_proxy().add_root_certificate(ca);
    let token = env::var("LVP_TOKEN").ok();
    if token.is_none() {
        let certificate = fs::read(setting("LVP_CERTIFICATE")).unwrap();
        let key = fs::read(setting("LVP_KEY")).unwrap();
        builder = builder.identity(Identity::from_pkcs8_pem(&certificate, &key).unwrap());
    }
    Configuration {
        base_path: setting("LVP_URL"),
        client: builder.build().unwrap(),
        api_key: token.map(|key| ApiKey { prefix: None, key }),
        ..Configuration::default()
    }
}

async fn wait(api: &Configuration, id: &str, wanted: &[JobStatus]) -> Job {
    for _ in 0..6000 {
        let job = jobs_api::get_job(api, id).await.unwrap();
        if wanted.contains(&job.status) {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("job {id} did not get to {wanted:?}")
}

async fn submit(api: &Configuration, request: JobRequest) -> String {
    jobs_api::submit_job(api, request, None).await.unwrap().job_id.to_string()
}

/// Submit a job for a volume of 3 GiB, and find it in every list.
async fn provision(api: &Configuration, volume: &str) -> String {
    let checksum = setting("LVP_CHECKSUM");
    let request = JobRequest {
        image_url: Some(setting("LVP_IMAGE_URL")),
        volume_size_gb: Some(SIZE_GB),
        ..JobRequest::new(volume.to_owned())
    };
    let plan = jobs_api::plan_job(api, request.clone()).await.unwrap();
    assert_eq!((plan.volume_size_bytes, plan.refusals.len()), (Some(SIZE), 0));

    let id = submit(api, request).await;
    let job = wait(api, &id, &ENDED).await;
    assert_eq!((job.status, &job.error), (JobStatus::Completed, &None));
    let (made, progress) = (job.volume.unwrap(), job.progress.unwrap());
    assert_eq!((made.size_bytes, made.provisioned_by), (SIZE, ProvisionedBy::Copy));
    assert_eq!((progress.bytes_total, progress.bytes_processed), (Some(SIZE), Some(SIZE)));
    assert_eq!(progress.percent, 100.0);
    assert_eq!((job.request.volume_size_gb, job.request.priority), (Some(SIZE_GB), Some(0)));
    assert_eq!((job.submitted_by, job.waiting_for), (Some(setting("LVP_PRINCIPAL")), None));
    assert!(job.created_at <= job.updated_at);

    let page = jobs_api::list_jobs(api, Some(JobStatus::Completed), Some(volume), None, None, None, Some(5)).await.unwrap();
    assert_eq!((page.count, page.offset, page.limit, page.jobs[0].job_id), (1, 0, 5, job.job_id));
    let volumes = volumes_api::list_volumes(api, None, None).await.unwrap().volumes;
    let found = volumes.iter().find(|one| one.name == volume).unwrap();
    assert_eq!((found.size_bytes, found.checksum.as_ref(), &found.job_id), (SIZE, Some(&checksum), &id));
    let cached = cache_api::list_cached_images(api, Some(&checksum[..12]), None, None).await.unwrap();
    assert_eq!((cached.count, cached.images[0].virtual_size), (1, Some(SIZE)));
    assert_eq!(cached.images[0].digest, format!("sha256:{checksum}"));
    id
}

async fn cancel(api: &Configuration, volume: &str) {
    let request = JobRequest {
        image_url: Some(setting("LVP_HELD_URL")),
        image_type: Some("raw".to_owned()),
        priority: Some(-7),
        ..JobRequest::new(volume.to_owned())
    };
    let id = submit(api, request).await;
    assert_eq!(wait(api, &id, &[JobStatus::Running]).await.request.priority, Some(-7));
    assert_eq!(jobs_api::cancel_job(api, &id).await.unwrap().job_id.to_string(), id);
    assert_eq!(wait(api, &id, &ENDED).await.status, JobStatus::Cancelled);
}

/// Read the error of a call that is refused with this status.
fn refused<T: Debug, E: Debug>(status: u16, result: Result<T, Error<E>>) -> ErrorResponse {
    let Err(Error::ResponseError(response)) = result else { panic!("{result:?} is not an error response") };
    assert!(response.entity.is_some());
    let error: ErrorResponse = serde_json::from_str(&response.content).unwrap();
    assert_eq!((response.status.as_u16(), error.code), (status, i32::from(status)));
    assert!(!error.message.is_empty());
    error
}

async fn fail(api: &Configuration, ended: &str) {
    let unknown = jobs_api::get_job(api, &Uuid::new_v4().to_string()).await;
    assert_eq!(refused(404, unknown).error, "job not found");
    refused(400, jobs_api::cancel_job(api, ended).await);
    let foreign = JobRequest {
        image_url: Some("https://elsewhere.example/disk.qcow2".to_owned()),
        ..JobRequest::new("x".to_owned())
    };
    refused(400, jobs_api::submit_job(api, foreign, None).await);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (api, volume) = (connect(), setting("LVP_VOLUME"));
    let caller = host_api::whoami(&api).await.unwrap();
    assert_eq!((caller.principal, caller.role), (setting("LVP_PRINCIPAL"), Role::Operator));
    assert!(host_api::list_targets(&api).await.unwrap().targets[0].size_bytes > Some(SIZE));
    let ended = provision(&api, &volume).await;
    cancel(&api, &format!("{volume}-cancelled")).await;
    fail(&api, &ended).await;
}
