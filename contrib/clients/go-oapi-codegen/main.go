// Uses the client that oapi-codegen generates: every value that the service answers is checked.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"lvp.example/client/lvp"

	"github.com/google/uuid"
)

const sizeGB int64 = 3
const size = sizeGB << 30

var (
	ctx  = context.Background()
	api  *lvp.ClientWithResponses
	done = []lvp.JobStatus{lvp.JobStatusCompleted, lvp.JobStatusFailed, lvp.JobStatusCancelled}
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return value
}

func equal[T comparable](what string, found, wanted T) {
	if found != wanted {
		log.Panicf("%s is %v, not %v", what, found, wanted)
	}
}

// answered returns the body of a success response.
func answered[T any](body *T, response *http.Response) T {
	if body == nil {
		log.Panicf("%s %s: %s", response.Request.Method, response.Request.URL, response.Status)
	}
	return *body
}

// connect makes a client with a token, or else with a certificate.
func connect() *lvp.ClientWithResponses {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(os.Getenv("LVP_CA"))))
	config := &tls.Config{RootCAs: roots}
	token := os.Getenv("LVP_TOKEN")
	if token == "" {
		pair := must(tls.LoadX509KeyPair(os.Getenv("LVP_CERTIFICATE"), os.Getenv("LVP_KEY")))
		config.Certificates = []tls.Certificate{pair}
	}
	sign := func(_ context.Context, request *http.Request) error {
		if token != "" {
			request.Header.Set("X-API-Token", token)
		}
		return nil
	}
	transport := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	return must(lvp.NewClientWithResponses(
		os.Getenv("LVP_URL"), lvp.WithHTTPClient(transport), lvp.WithRequestEditorFn(sign)))
}

func wait(id uuid.UUID, wanted ...lvp.JobStatus) lvp.Job {
	for range 6000 {
		response := must(api.GetJobWithResponse(ctx, id))
		job := answered(response.JSON200, response.HTTPResponse)
		for _, status := range wanted {
			if job.Status == status {
				return job
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	log.Panicf("job %s did not get to %v", id, wanted)
	return lvp.Job{}
}

func submit(request lvp.JobRequest) uuid.UUID {
	response := must(api.SubmitJobWithResponse(ctx, nil, request))
	return answered(response.JSON202, response.HTTPResponse).JobId
}

// provision submits a job for a volume of 3 GiB, and finds it in every list.
func provision(volume string) uuid.UUID {
	url, checksum, gb := os.Getenv("LVP_IMAGE_URL"), os.Getenv("LVP_CHECKSUM"), sizeGB
	request := lvp.JobRequest{VolumeName: volume, ImageUrl: &url, VolumeSizeGb: &gb}
	planned := must(api.PlanJobWithResponse(ctx, request))
	plan := answered(planned.JSON200, planned.HTTPResponse)
	equal("volume_size_bytes", *plan.VolumeSizeBytes, size)
	equal("refusals", len(plan.Refusals), 0)

	job := wait(submit(request), done...)
	equal("status", job.Status, lvp.JobStatusCompleted)
	equal("volume.size_bytes", job.Volume.SizeBytes, size)
	equal("volume.provisioned_by", job.Volume.ProvisionedBy, lvp.Copy)
	equal("bytes_total", *job.Progress.BytesTotal, size)
	equal("bytes_processed", *job.Progress.BytesProcessed, size)
	equal("percent", job.Progress.Percent, 100)
	equal("request.volume_size_gb", *job.Request.VolumeSizeGb, sizeGB)
	equal("submitted_by", *job.SubmittedBy, os.Getenv("LVP_PRINCIPAL"))
	equal("waiting_for", job.WaitingFor, nil)
	equal("created_at is later than updated_at", job.CreatedAt.After(job.UpdatedAt), false)

	status, limit := lvp.JobStatusCompleted, int32(5)
	jobs := must(api.ListJobsWithResponse(
		ctx, &lvp.ListJobsParams{Status: &status, VolumeName: &volume, Limit: &limit}))
	page := answered(jobs.JSON200, jobs.HTTPResponse)
	equal("count", page.Count, 1)
	equal("limit", page.Limit, limit)
	equal("jobs[0].job_id", page.Jobs[0].JobId, job.JobId)

	volumes := must(api.ListVolumesWithResponse(ctx, nil))
	found := false
	for _, one := range answered(volumes.JSON200, volumes.HTTPResponse).Volumes {
		if one.Name == volume {
			found = true
			equal("size_bytes", one.SizeBytes, size)
			equal("checksum", *one.Checksum, checksum)
			equal("job_id", one.JobId, job.JobId.String())
		}
	}
	equal("the volume is listed", found, true)

	prefix := checksum[:12]
	images := must(api.ListCachedImagesWithResponse(ctx, &lvp.ListCachedImagesParams{ChecksumPrefix: &prefix}))
	cached := answered(images.JSON200, images.HTTPResponse)
	equal("count", cached.Count, 1)
	equal("virtual_size", *cached.Images[0].VirtualSize, size)
	equal("digest", cached.Images[0].Digest, "sha256:"+checksum)
	return job.JobId
}

func cancel(volume string) {
	url, kind, priority := os.Getenv("LVP_HELD_URL"), "raw", int32(-7)
	id := submit(lvp.JobRequest{VolumeName: volume, ImageUrl: &url, ImageType: &kind, Priority: &priority})
	equal("priority", *wait(id, lvp.JobStatusRunning).Request.Priority, priority)
	response := must(api.CancelJobWithResponse(ctx, id))
	equal("job_id", answered(response.JSON200, response.HTTPResponse).JobId, id)
	equal("status", wait(id, done...).Status, lvp.JobStatusCancelled)
}

// fail provokes errors that have a type.
func fail(ended uuid.UUID) {
	unknown := must(api.GetJobWithResponse(ctx, uuid.New()))
	equal("code", unknown.JSON404.Code, 404)
	equal("error", unknown.JSON404.Error, "job not found")
	late := must(api.CancelJobWithResponse(ctx, ended))
	equal("code", late.JSON400.Code, 400)
	foreign := "https://elsewhere.example/disk.qcow2"
	refused := must(api.SubmitJobWithResponse(ctx, nil, lvp.JobRequest{VolumeName: "x", ImageUrl: &foreign}))
	equal("code", refused.JSON400.Code, 400)
	equal("message is empty", refused.JSON400.Message == "", false)
	equal("X-Request-ID is empty", refused.Headers400.XRequestID == "", false)
}

func main() {
	api = connect()
	volume := os.Getenv("LVP_VOLUME")
	whoami := must(api.WhoamiWithResponse(ctx))
	caller := answered(whoami.JSON200, whoami.HTTPResponse)
	equal("principal", caller.Principal, os.Getenv("LVP_PRINCIPAL"))
	equal("role", caller.Role, lvp.Operator)
	targets := must(api.ListTargetsWithResponse(ctx))
	equal("target is smaller", *answered(targets.JSON200, targets.HTTPResponse).Targets[0].SizeBytes < size, false)
	id := provision(volume)
	cancel(volume + "-cancelled")
	fail(id)
	fmt.Println("ok")
}
